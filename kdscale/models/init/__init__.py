"""First weights of a student: parts of its teacher, or random ones.

1. Plan (`plan.py`): which tensor of the teacher each tensor of the student starts from. It needs
   configs and no weights, so that it can be made, and refused, before any worker starts.
   `layers.py` chooses the teacher's layers, `sources.py` pairs the tensors, `width.py` and
   `families.py` cut them where the student is narrower.
2. Calibrate (`calibrate.py`), for a narrower student only: the teacher runs over a few sequences,
   and the dimensions with the largest activations are kept (Minitron, arXiv:2407.14679).
3. Build (`plan.build_student`): the student gets random weights under the seed, over which the
   teacher's are written one by one, read from its files tensor by tensor
   (`kdscale.models.stored_tensors`).
"""
