"""The command line `surgery`: thin commands over the packages."""
