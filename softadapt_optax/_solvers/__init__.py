"""Mathematics of K x K matrices: arrays in, arrays out, one file for each problem."""
