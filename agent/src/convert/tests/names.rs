use super::super::names::{dns_label, dns_subdomain, label_key, label_value, port_name};

#[test]
fn names_have_the_forms_that_the_api_server_asks_for() {
    type Check = fn(&str) -> Result<(), String>;
    let long = |length: usize| "a".repeat(length);
    let prefixed = |length: usize| format!("example.com/{}", long(length));
    let rows: &[(&str, Check, &str, bool)] = &[
        ("a label", dns_label, "web-1", true),
        ("a label of digits", dns_label, "1", true),
        ("the longest label", dns_label, &long(63), true),
        ("a label too long", dns_label, &long(64), false),
        ("an empty label", dns_label, "", false),
        ("a dot in a label", dns_label, "a.b", false),
        ("capitals in a label", dns_label, "Web", false),
        ("'-' in front", dns_label, "-a", false),
        ("'-' at the end", dns_label, "a-", false),
        ("an underscore in a label", dns_label, "a_b", false),
        ("a subdomain", dns_subdomain, "web.example.com", true),
        ("a part longer than a label, as API servers accept it", dns_subdomain, &long(100), true),
        ("the longest subdomain", dns_subdomain, &long(253), true),
        ("a subdomain too long", dns_subdomain, &long(254), false),
        ("an empty part", dns_subdomain, "a..b", false),
        ("a part that ends with '-'", dns_subdomain, "a-.b", false),
        ("capitals in a subdomain", dns_subdomain, "Web", false),
        ("a key", label_key, "app", true),
        ("a key with all signs", label_key, "App_v1.2-x", true),
        ("a key with a prefix", label_key, "app.kubernetes.io/name", true),
        ("the longest key", label_key, &prefixed(63), true),
        ("a key too long", label_key, &prefixed(64), false),
        ("a key without a name", label_key, "example.com/", false),
        ("a key without a prefix before '/'", label_key, "/name", false),
        ("two prefixes", label_key, "a/b/c", false),
        ("capitals in the prefix", label_key, "Example.com/name", false),
        ("an empty key", label_key, "", false),
        ("a key with a space", label_key, "my app", false),
        ("a value", label_value, "v1.2_x-Y", true),
        ("an empty value", label_value, "", true),
        ("the longest value", label_value, &long(63), true),
        ("a value too long", label_value, &long(64), false),
        ("a value with '/'", label_value, "a/b", false),
        ("a value that ends with '.'", label_value, "a.", false),
        ("a port name", port_name, "serve-80-tcp", true),
        ("the longest port name", port_name, &long(15), true),
        ("a port name too long", port_name, &long(16), false),
        ("a port name of digits", port_name, "8080", false),
        ("capitals in a port name", port_name, "HTTP", false),
        ("'--' in a port name", port_name, "a--b", false),
        ("'-' in front of a port name", port_name, "-a", false),
        ("a dot in a port name", port_name, "a.b", false),
        ("an empty port name", port_name, "", false),
    ];
    for (what, check, name, good) in rows {
        assert_eq!(check(name).is_ok(), *good, "{what}: {name:?} gave {:?}", check(name));
    }
}
