"""Many trials: a queue of objects to make, engines that make them, one table of results."""
