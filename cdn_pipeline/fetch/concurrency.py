"""How many downloads from one host go at once: more as long as it answers, half as many when it does not."""

FIRST_LIMIT = 16.0  # a download takes 5 to 100 ms: 160 a second and more, of which two cores encode 27
MOST_AT_ONCE = 48.0  # of the 64 images in hand: a host that begins to hang leaves places to the others


class Concurrency:
    """The limit of one host: additive increase, multiplicative decrease.

    A round of answered downloads at the limit raises it by one; a failure that tells of the host halves it. Failures of
    downloads that had begun before the limit was last halved tell nothing new.
    """

    def __init__(self) -> None:
        self.limit = FIRST_LIMIT
        self.in_work = 0
        self._halvings = 0

    @property
    def has_room(self) -> bool:
        """Whether one more download may begin."""
        return self.in_work < int(self.limit)

    def begin(self) -> int:
        """Notes a download that begins; what it returns goes to `failed`."""
        self.in_work += 1
        return self._halvings

    def end(self) -> None:
        """Notes the end of a download, however it ended."""
        self.in_work -= 1

    def answered(self) -> None:
        """Notes an answer, before `end`. It raises the limit only if that is what holds downloads up."""
        if not self.has_room:
            self.limit = min(self.limit + 1 / self.limit, MOST_AT_ONCE)

    def failed(self, begun: int) -> None:
        """Notes a failure of the host, before `end`; `begun` is what `begin` returned."""
        if begun == self._halvings:
            self.limit = max(self.limit / 2, 1.0)
            self._halvings += 1
