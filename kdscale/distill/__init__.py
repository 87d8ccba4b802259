"""The student: its losses, and its training from the cache. It never meets the teacher."""
