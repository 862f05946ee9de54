"""The networks and losses of TSAN (Cheng et al., IEEE TMI 2021, doi 10.1109/TMI.2021.3085948).

Imports torch and nothing of this project outside model/.
"""
