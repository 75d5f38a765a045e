"""What the leader of a shard does all the time: book, guard, lend and clean up."""
