"""`cdn-pipeline doctor`: whether a deployment can work, part by part, with the cause and the cure of what is wrong.

Here belong checks that a person has made before he relies on a set-up, usable without a terminal: `examination` has
them in the order in which they are made. They change nothing but a throw-away object in each store. What goes on while
the pipeline works is measured by `observe.monitor` instead.
"""
