"""From a captured graph and a plan to a step program: analyse, bind, schedule, variants, registers, lowering.

May import ``passes``, ``analysis``, ``capture`` and the rooms below them.
"""
