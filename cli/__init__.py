"""What LightningCLI needs beside it: config files and checkpoints that are read safely, wrong settings in one line."""
