"""Pages for operators, rendered here without a build step: what is wrong, what to do first, and the buttons for it.

Pages show what `observe` tells and do what the API's routes do, through the same functions. No policy, no SQL, and no
script that a page could not do without.
"""
