"""The API's types, for the service and its client: `common`, `images` and `probes`.

They are the contract between both: fields are added, never renamed. One class serves both sides. The service refuses
unknown fields in a request, and words that are not in a field's list. A client reads answers with `Answer.read`, which
takes both, because a newer service may have added them.
"""
