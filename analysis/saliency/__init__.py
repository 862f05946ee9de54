"""Which voxels moved an age: attribution, regions, pictures."""
