"""What clients send: bodies, zips and catalogues, read in processes that may do little, and the items in them."""
