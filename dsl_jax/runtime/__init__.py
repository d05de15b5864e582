"""What a run needs besides mathematics: config, state, devices, disk, logs."""
