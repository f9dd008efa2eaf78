"""The rules of cutting: where a model may be cut, and what a window then needs changed.

`table` has a row per architecture that needs anything; `shape` is what the rules look at; `kinds` says what
layers there are, `layout` which layers a window is made of, `metadata` what its header says, `derived` has
the functions that rows name.
"""
