"""Starting experiments: on the embedded host, or inside an unmodified threestudio.

:mod:`.checkout` recognises a threestudio, :mod:`.choice` decides on a host, :mod:`.overlays` makes
one experiment file of several, :mod:`.checks` refuses it where a name or key is unknown,
:mod:`.upstream` runs it there. :mod:`.linking` and :mod:`.doctor` are for people who start
threestudio themselves, or cannot.
"""
