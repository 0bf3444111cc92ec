"""What tests and benchmarks share: real services and databases, made tables, encoders and files. Imports neither."""
