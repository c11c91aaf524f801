use super::{EndpointState, UpdateResult};

#[test]
fn names_in_metrics_are_names_in_json() {
    for state in EndpointState::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
    for result in UpdateResult::ALL {
        assert_eq!(serde_json::to_value(result).unwrap(), result.name());
    }
}
