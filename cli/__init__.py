"""Extensions of LightningCLI: safe reading of config files and checkpoints, errors of one line for wrong settings."""
