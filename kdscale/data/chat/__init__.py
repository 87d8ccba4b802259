"""Chat: conversations in one form (`messages`), rendered by a template that marks answers.

`template` finds which characters of a rendered conversation, and then which tokens, an assistant is
to learn.
"""
