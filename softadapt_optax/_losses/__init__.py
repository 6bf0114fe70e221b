"""Methods that look at the losses alone, one file each."""
