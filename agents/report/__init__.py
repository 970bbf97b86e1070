"""Reports: a training run as one HTML file that needs nothing else.

`episode_record` makes the JSON of one episode, `write_report` the page.
"""

from turnwise.agents.report.page import write_report
from turnwise.agents.report.records import episode_record

__all__ = ["episode_record", "write_report"]
