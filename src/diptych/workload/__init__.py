"""What clients ask for, and when: arrivals, lengths, conversations, traces, and real text of a given length.

Pure: the same seed gives the same load, for a server over HTTP as for the simulator. Sizes are in tokens, times in
seconds from the load's begin.
"""
