//! Where a path leads at the moment, so that two looks can be compared.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A file, and the mount by which it was reached.
///
/// The mount tells a namespace that is bound to a name anew from the one before, which may have had
/// the same inode number. Kernels before 6.8 use the numbers of mounts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) device: (u32, u32),
    inode: u64,
    mount: u64,
    kind: FileKind,
}

/// What a path may lead through, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Directory,
    SymbolicLink,
    Other,
}

/// A [`Place`], or the errno of the kernel that finds none.
pub(super) type Leads = Result<Place, i32>;

impl Place {
    /// Where `path` leads, symbolic links followed.
    pub(super) fn of_path(path: &Path) -> Leads {
        // The kernel sees a path that holds a NUL as no path at all.
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::ENOENT)?;
        look(libc::AT_FDCWD, &path, 0)
    }

    /// The file that is open.
    pub(super) fn of_file(fd: BorrowedFd<'_>) -> Leads {
        look(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    pub(super) fn kind(&self) -> FileKind {
        self.kind
    }
}

fn look(directory: i32, path: &CStr, flags: libc::c_int) -> Leads {
    // Neither mounts anything nor asks a server.
    let flags = flags | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    let wanted =
        libc::STATX_TYPE | libc::STATX_INO | libc::STATX_MNT_ID | libc::STATX_MNT_ID_UNIQUE;
    // SAFETY: the structure holds integers only, for which zeros are values.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in NUL and `stat` has the size of the structure that the call fills in.
    let result = unsafe { libc::statx(directory, path.as_ptr(), flags, wanted, &raw mut stat) };
    if result < 0 {
        return Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO));
    }
    let kind = match u32::from(stat.stx_mode) & libc::S_IFMT {
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::SymbolicLink,
        _ => FileKind::Other,
    };
    Ok(Place {
        device: (stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        mount: stat.stx_mnt_id,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn path_and_open_file_lead_to_the_same_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert_eq!(Place::of_path(&path), Err(libc::ENOENT));
        let file = File::create(&path).unwrap();
        let place = Place::of_path(&path).unwrap();
        assert_eq!(Place::of_file(file.as_fd()), Ok(place));
        assert_eq!(place.kind(), FileKind::Other);

        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Place::of_path(&link), Ok(place));
        let above = Place::of_path(directory.path()).unwrap();
        assert_eq!(above.kind(), FileKind::Directory);
        assert_ne!(above, place);
    }
}
