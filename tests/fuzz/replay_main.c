/* SPDX-License-Identifier: MIT
 *
 * replay_main.c -- runs a fuzz target over files, without libFuzzer: every file of the folders
 * given (and every file given), in the order of their names. Fails when there is none at all, so
 * that a lost corpus is noticed.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PATH_BYTES 4096

static int
replay_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    struct stat st;
    if (fstat(fileno(file), &st) != 0 || st.st_size > 64 << 20) {
        fprintf(stderr, "%s: cannot be read, or is larger than 64 MiB\n", path);
        fclose(file);
        return -1;
    }
    /* Exactly the file's size, so that a sanitizer sees a read past its end. */
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size > 0 ? size : 1);
    if (data == NULL || fread(data, 1, size, file) != size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        free(data);
        fclose(file);
        return -1;
    }
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static int
replay_folder(const char *path)
{
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    if (count < 0) {
        perror(path);
        return -1;
    }
    int replayed = 0;
    for (int i = 0; i < count; i++) {
        char file[PATH_BYTES];
        snprintf(file, sizeof(file), "%s/%s", path, names[i]->d_name);
        struct stat st;
        if (replayed >= 0 && stat(file, &st) == 0 && S_ISREG(st.st_mode))
            replayed = replay_file(file) < 0 ? -1 : replayed + 1;
        free(names[i]);
    }
    free(names);
    return replayed;
}

int
main(int argc, char **argv)
{
    int replayed = 0;
    for (int i = 1; i < argc; i++) {
        struct stat st;
        int more = stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode) ? replay_folder(argv[i])
                                                                  : replay_file(argv[i]);
        if (more < 0) return 1;
        replayed += more;
    }
    printf("%d inputs replayed\n", replayed);
    return replayed > 0 ? 0 : 1;
}
