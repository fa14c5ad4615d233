"""What to build: searches for the workers that carry the most within an SLO, for each device or dollar.

A question (question.py) says what there is and what is wanted. The search (search.py) looks at single workers first,
then at the best combinations of them, each by simulations at rising rates (goodput.py) of the live router and policies
(`diptych.sim`). Its answer is a ranking (placements.py), which answers.py writes as a table, JSON or a configuration
and picture.py draws; here.py does the same for this machine.
"""
