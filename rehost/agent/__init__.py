"""The program that runs on the source: standard library only, Python 3.6 or later, run from memory.

The control side sends these modules over the channel; they are loaded into `sys.modules` and nothing is written. So
no module here may import anything of Rehost but its neighbours, and none may use syntax or names newer than
Python 3.6 (no `from __future__ import annotations`, no dataclasses, no `:=`). docs/wire.md describes what is spoken.
"""
