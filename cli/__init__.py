"""Extensions of LightningCLI: safe reading of config files and checkpoints, one-line errors for wrong settings."""
