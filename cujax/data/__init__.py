"""Where images come from (`sources`), what to forget (`requests`), and how both are batched (`batches`)."""
