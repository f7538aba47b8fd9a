"""The controller: observes each access request, decides, and applies what was decided."""
