"""What every function does around its own work: headers, keys, bodies, replies and errors."""
