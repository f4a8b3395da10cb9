"""One file for each command of `celeriac`; each defines `command`."""
