"""Where images come from: IDX files, fetching, splits, batches, augmentation."""
