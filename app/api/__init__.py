"""What all routes share: the running service, who may call, and what answers and their documentation look like."""
