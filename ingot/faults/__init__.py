"""The proofs of reliability: kills, full disks, numbers that are none, broken files."""
