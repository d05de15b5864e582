"""What `--mode` names, one file each, and what several modes share."""
