//! Operations of pocketlm on slices: no Python, no files, no threads.
