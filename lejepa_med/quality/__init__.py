"""Is an encoder safe to use, and is its archive in order? Checks for confounders, odd images and doubtful labels."""
