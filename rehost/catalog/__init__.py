"""What a migration job is made of, remembered: sources, jobs, runs, snapshots, images, verifications."""
