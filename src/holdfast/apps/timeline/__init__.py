"""`holdfast timeline`: the full stop of a process as a picture, from its records.

    problem   what can go wrong, as sentences for whoever typed the command
    read      from a file of JSON lines to records; what is wrong in it is told and left out
    words     events in words; every text of a record is made harmless here
    axis      from instants to places on a line, with long pauses cut short
    text      for terminals
    mermaid   a sequence diagram
    markup    HTML that cannot be anything else than what is meant
    chart     the picture of one process, in HTML
    page      one HTML page that needs nothing beside it; its style is in page.css
    show      all of it together

What belongs here: how a stop looks. What does not: what happened, and how it is to be taken, which
is `domain.lifecycle.timeline`.
"""
