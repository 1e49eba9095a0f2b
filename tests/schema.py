"Whether a results file agrees with its description in paper/results.csv."
JSON_TYPES = {"text": str, "integer": int, "number": (int, float), "boolean": bool, "any": object}


def _stands_for(field, path):
    "Whether a field of the schema, or its beginning, describes a path in a result."
    return len(path) <= len(field) and all(f == p or f.startswith("<") for f, p in zip(field, path))


def schema_errors(
    value: dict,  # contents of a results file, or an object in it
    name: str,  # its name in the schema, such as "data.json"
    schema: dict,  # from `results_schema`
    used: set,  # is extended by the described fields that occur, as (object, field)
    path: tuple = (),  # where `value` is in the object
) -> list[str]:  # one message per field
    "Find the fields that are not described, or whose value is not of the described type."
    owners = (name, "provenance") if name.endswith(".json") else (name,)
    errors = []
    for key, part in value.items():
        place = (*path, key)
        near = [(owner, field) for owner in owners for field in schema[owner] if _stands_for(field, place)]
        exact = sorted((pair for pair in near if len(pair[1]) == len(place)), key=lambda pair: "<" in "".join(pair[1]))
        if exact:
            used.add(exact[0])
            errors += _type_errors(part, schema[exact[0][0]][exact[0][1]][0], f"{name} {'.'.join(place)}", schema, used)
        elif near and isinstance(part, dict): errors += schema_errors(part, name, schema, used, place)
        else: errors.append(f"{name} {'.'.join(place)} is not described in paper/results.csv")
    return errors


def _type_errors(value, type, where, schema, used):
    "Errors of a value that is described as of this type."
    if value is None and type.endswith(" or null"): return []
    type = type.removesuffix(" or null")
    if type.startswith("list of ") and isinstance(value, list):
        return [error for item in value
                for error in _type_errors(item, type.removeprefix("list of "), where, schema, used)]
    if type in schema and isinstance(value, dict): return schema_errors(value, type, schema, used)
    if type in JSON_TYPES and isinstance(value, JSON_TYPES[type]): return []
    return [f"{where} is {value!r:.60}, but paper/results.csv says {type}"]
