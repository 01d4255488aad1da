"""Every check removed and turned around, one at a time: what no test notices is not tested."""
