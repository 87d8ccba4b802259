"""Chat: conversations in one form (`messages`), rendered by a template that marks answers.

`template` renders; `training` finds the training template of a published one; `answers` finds what
an assistant is to learn of each turn, and the texts in which it sees what it sees in use.
"""
