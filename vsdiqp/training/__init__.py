"""From a folder of videos and stills to trained weights: sources, camera, real encodes, the pool, the dataset."""
