"""Methods that look at the gradients' norms or inner products, one file each."""
