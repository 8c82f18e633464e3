/* A snapshot's directory while it is being made. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/snapshot_internal.h"

bool snapshot_draft_begin(struct snapshot_draft *draft, const char *directory, struct error *err)
{
    *draft = (struct snapshot_draft){ .directory = -1 };
    if (access(directory, F_OK) == 0)
        return error_set(err, "%s exists already; give the name of a new directory", directory);
    if (asprintf(&draft->path, "%s.partial-%d", directory, (int)getpid()) < 0) {
        draft->path = NULL;
        return error_set(err, "no memory for the snapshot");
    }
    if (mkdir(draft->path, 0777) < 0)
        return error_errno(err, errno, "cannot make the directory %s", draft->path);
    draft->directory = open(draft->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return draft->directory >= 0 || error_errno(err, errno, "cannot open the directory %s", draft->path);
}

static bool sync_file(int directory, const char *name, struct error *err)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    bool ok = fd >= 0 && fdatasync(fd) == 0;
    if (!ok)
        error_errno(err, errno, "cannot write the file %s to the disk", name);
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool remove_file(int directory, const char *name, struct error *err)
{
    unlinkat(directory, name, 0);
    return true;
}

static bool for_each_file(struct snapshot_draft *draft, bool (*call)(int directory, const char *name, struct error *err),
                          struct error *err)
{
    DIR *listing = opendir(draft->path);
    bool ok = listing || error_errno(err, errno, "cannot list %s", draft->path);
    for (struct dirent *entry; ok && (entry = readdir(listing));)
        ok = entry->d_name[0] == '.' || call(draft->directory, entry->d_name, err);
    if (listing)
        closedir(listing);
    return ok;
}

bool snapshot_sync_directory(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);       /* a file system without such a thing */
    if (!ok)
        error_errno(err, errno, "cannot write the directory %s to the disk", path);
    if (fd >= 0)
        close(fd);
    return ok;
}

static bool sync_place(const char *directory, struct error *err)
{
    char path[PATH_MAX];
    size_t length = strlen(directory);
    while (length > 1 && directory[length - 1] == '/')
        length--;
    while (length && directory[length - 1] != '/')
        length--;
    snprintf(path, sizeof(path), "%.*s.", (int)length, directory);
    return snapshot_sync_directory(path, err);
}

bool snapshot_draft_complete(struct snapshot_draft *draft, const char *directory, struct error *err)
{
    if (!for_each_file(draft, sync_file, err) || !snapshot_sync_directory(draft->path, err))
        return false;
    bool ok = renameat2(AT_FDCWD, draft->path, AT_FDCWD, directory, RENAME_NOREPLACE) == 0;
    if (!ok && errno == EINVAL && access(directory, F_OK) != 0)     /* a file system that does not know the flag */
        ok = rename(draft->path, directory) == 0;
    if (!ok)
        return error_errno(err, errno, "cannot make the directory %s", directory);
    draft->complete = true;
    return sync_place(directory, err);
}

void snapshot_draft_end(struct snapshot_draft *draft)
{
    if (draft->directory >= 0 && !draft->complete) {
        for_each_file(draft, remove_file, NULL);
        rmdir(draft->path);
    }
    if (draft->directory >= 0)
        close(draft->directory);
    free(draft->path);
}
