fn unfinished(
