"""What a codec does to a student's gradient: a cache, and its alternatives, against the teacher."""
