"""The environment of a process: misspelt variables, variables of other programs, and the settings of a role."""
