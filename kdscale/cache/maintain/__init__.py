"""What looks after a stored cache: statistics, verification, repair, collection, export."""
