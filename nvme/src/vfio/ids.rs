//! Which command a completion belongs to.

/// Bits of an identifier that name a place in the table; the others count the place's users, so
/// that a completion that comes late or twice is not taken for a later command's.
const PLACE_BITS: u32 = 10;

/// Commands a table holds at most. One place less than there are, because identifier FFFFh is
/// reserved.
pub(super) const IDS_MAX: usize = (1 << PLACE_BITS) - 1;

/// What is known of each command in flight.
pub(super) struct Ids<T> {
    places: Vec<Place<T>>,
    free: Vec<u16>,
}

struct Place<T> {
    /// The identifier of the present user, or of the next.
    id: u16,
    user: Option<T>,
}

impl<T> Ids<T> {
    /// A table of 1 to [`IDS_MAX`] places.
    pub(super) fn new(places: usize) -> Self {
        let places = places.clamp(1, IDS_MAX) as u16;
        Self {
            places: (0..places).map(|id| Place { id, user: None }).collect(),
            free: (0..places).rev().collect(),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes a command in and gives its identifier, or gives it back: the table is full.
    pub(super) fn insert(&mut self, user: T) -> Result<u16, T> {
        let Some(at) = self.free.pop() else { return Err(user) };
        let place = &mut self.places[usize::from(at)];
        place.user = Some(user);
        Ok(place.id)
    }

    /// Lets a command out. `None`: no command of this identifier is in flight.
    pub(super) fn remove(&mut self, id: u16) -> Option<T> {
        let at = Self::place(id);
        let place = self.places.get_mut(at).filter(|place| place.id == id)?;
        let user = place.user.take()?;
        place.id = place.id.wrapping_add(1 << PLACE_BITS);
        self.free.push(at as u16);
        Some(user)
    }

    /// A command in flight. `None`: no command of this identifier is.
    pub(super) fn get_mut(&mut self, id: u16) -> Option<&mut T> {
        let place = self.places.get_mut(Self::place(id)).filter(|place| place.id == id)?;
        place.user.as_mut()
    }

    /// The place that an identifier names; below the number of places for those in flight.
    pub(super) fn place(id: u16) -> usize {
        usize::from(id & ((1 << PLACE_BITS) - 1))
    }

    /// The commands in flight with their identifiers, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut T)> {
        self.places.iter_mut().filter_map(|p| p.user.as_mut().map(|user| (p.id, user)))
    }

    /// Any command in flight.
    pub(super) fn any(&self) -> Option<u16> {
        self.places.iter().find(|p| p.user.is_some()).map(|p| p.id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// An identifier leads to its own command or to none, even if it was in use many times.
        #[test]
        fn old_identifiers_lead_nowhere(
            places in 1usize..5,
            steps in prop::collection::vec(prop::option::of(0usize..8), 0..200),
        ) {
            let mut ids = Ids::new(places);
            let mut model = HashMap::new();
            let mut old = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    None => match ids.insert(n) {
                        Ok(id) => prop_assert!(model.insert(id, n).is_none()),
                        Err(_) => prop_assert_eq!(model.len(), places),
                    },
                    Some(nth) => if let Some(&id) = model.keys().nth(nth) {
                        prop_assert_eq!(ids.remove(id), model.remove(&id));
                        old.push(id);
                        // Identifiers come round after 64 uses of a place.
                        for id in old.iter().rev().take(16) {
                            prop_assert!(model.contains_key(id) || ids.remove(*id).is_none());
                        }
                    },
                }
                prop_assert_eq!(ids.in_flight(), model.len());
                prop_assert_eq!(ids.iter_mut().count(), model.len());
                prop_assert_eq!(ids.any().is_some(), !model.is_empty());
            }
        }
    }

    #[test]
    fn the_reserved_identifier_is_never_given() {
        let mut ids = Ids::new(usize::MAX);
        for _ in 0..70 {
            let all: Vec<_> = std::iter::from_fn(|| ids.insert(()).ok()).collect();
            assert_eq!(all.len(), IDS_MAX);
            assert!(!all.contains(&u16::MAX));
            all.iter().for_each(|id| assert_eq!(ids.remove(*id), Some(())));
        }
        assert_eq!(ids.remove(u16::MAX), None);
    }
}
