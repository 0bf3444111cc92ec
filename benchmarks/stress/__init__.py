"""Long and hostile work for a live service: random kills and full disks, made bombs, fuzzing, an hour of load."""
